"""Task losses in, task weights out. numpy only."""
