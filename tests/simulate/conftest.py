import sys
from pathlib import Path

from hypothesis import settings

# The fuzzer is a script: its modules are found when their folder is on the path.
sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

# A machine under load must not fail a test.
settings.register_profile("simulate", deadline=None)
settings.load_profile("simulate")
