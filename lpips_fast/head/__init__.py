"""The head of LPIPS: from the features of two images to their distance in each layer."""
