// Begins a file of kernels for any processor of the architecture that is compiled for.
#define LPIPS_FAST_ISA portable
#define LPIPS_FAST_VECTOR_BYTES 16
