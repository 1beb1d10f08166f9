"""The same algorithms written the textbook way in torch: one network at a time, nothing stacked.

They compute what the project's learners compute (tests/benchmarks checks it) and import nothing from it.
"""
