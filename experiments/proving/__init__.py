"""Does an edit of the library move a digit? Old and new code carry out the same small runs, compared bit for bit."""
