"""What a run can be: each task is one function of a job, above everything that it names.

A file of this folder is a task if it has a function under a line `@task(...)` (hkd/tasks/launch.py); it is read for
that line, never imported.
"""

from hkd.catalogue import entries

TASKS = entries(__name__, __path__[0], r"^@task\b.*\ndef (?P<attribute>\w+)\(")
