"""What the exit code of a command says."""

FAILED = 1  # data, weights, checkpoints, memory, a full disk, a folder in use; also any bug
REFUSED = 2  # the configuration
PREEMPTED = 75  # told to leave, and the state is saved: EX_TEMPFAIL of sysexits.h, try again
INTERRUPTED = 130  # a hasty Ctrl-C
STOPPED = (PREEMPTED, INTERRUPTED)  # nothing was wrong with the run
