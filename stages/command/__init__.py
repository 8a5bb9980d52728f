"""The command `vitlab`: one name for what the other folders run by hand."""
