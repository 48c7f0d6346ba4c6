"""`python -m lpips_fast`, which is `lpips-fast`."""

from lpips_fast.cli import main

if __name__ == "__main__":
    main()
