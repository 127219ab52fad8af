"""The exit codes of the commands."""

FAILED = 1  # an error of data, weights, checkpoints, memory or disk, a folder in use, or a bug
REFUSED = 2  # an error in the configuration
PREEMPTED = 75  # stopped by a signal after saving the state; EX_TEMPFAIL of sysexits.h: try again
INTERRUPTED = 130  # stopped by Ctrl-C without saving the state
STOPPED = (PREEMPTED, INTERRUPTED)  # stopped from outside; nothing was wrong with the run
