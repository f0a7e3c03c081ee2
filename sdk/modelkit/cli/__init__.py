"""The command line: one file per verb, `app` to find them and turn errors into exit codes, `console` to print."""
