"""The report of a run: pictures, one self-contained page, and tables for the terminal and for Markdown."""
