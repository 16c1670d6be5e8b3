"""The command line: one file for each command. What a command needs beyond its options is imported when it runs."""
