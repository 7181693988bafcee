"""`python -m course`: the command `course`, where the shell does not find it."""

from course.cli import main

main()
