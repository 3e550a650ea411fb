"""Print for people: tables, and text that a terminal can't be tricked with."""
