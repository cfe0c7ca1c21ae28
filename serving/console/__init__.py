"""The console: a page for the browser, which shows what is served and lets a person try it."""
