"""What a trace may hold at most: far more than recordings do, and little enough to be read.

``docs/simulate.md`` states these limits.
"""

# Recorded events of one device, skipped ones included. Reading so many from an archive takes some
# 3 GiB.
MAX_EVENTS = 1 << 24
# The core keeps a number for each pair of streams: 8 MiB for so many.
MAX_STREAMS = 1 << 10
# Names of actions in an .npz trace, and the characters of one.
MAX_ACTIONS = 1 << 8
MAX_ACTION_CHARACTERS = 1 << 8
# Twice what a snapshot of the most events has.
MAX_FILE_BYTES = 2 << 30
# Lists, dicts, tuples and texts of a snapshot: eight for each event. They take some 10 GiB.
MAX_OBJECTS = 1 << 27
# Values of a pickle that wait for their container, which bounds the depth too. Picklers hand over
# at most a thousand values at once.
MAX_OPEN_VALUES = 1 << 16
