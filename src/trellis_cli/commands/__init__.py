"""One module per command; each is imported when its command runs. `trellis_cli.app.COMMANDS` lists them."""
