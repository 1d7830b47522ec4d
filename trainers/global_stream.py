"""The one random stream of a process that torch's dropout draws from: whoever seeds it holds it while it draws."""

from threading import RLock

GLOBAL_STREAM = RLock()
