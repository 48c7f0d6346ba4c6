"""`python -m lpips_fast.demo`."""

import argparse
import inspect

from lpips_fast.demo.run import main

defaults = {name: parameter.default for name, parameter in inspect.signature(main).parameters.items()}
parser = argparse.ArgumentParser(prog="python -m lpips_fast.demo", description="What lpips_fast does, in a minute.")
parser.add_argument("--net", default=defaults["net"], help="the trunk: alex, vgg or squeeze (default: %(default)s)")
parser.add_argument("--steps", default=defaults["steps"], type=int, help="of the optimisation (default: %(default)s)")
parser.add_argument("--output", default=defaults["output"], help="the picture to write (default: %(default)s)")
parser.add_argument("--small", action="store_true", help="draw the distances alone, 900 pixels wide, as in README")
main(**vars(parser.parse_args()))
