"""An OpenAI-compatible server over our engine: requests in, texts out as they are written."""
