"""How fast the project's learners, evaluation and driver are beside other programs that do the same work."""
