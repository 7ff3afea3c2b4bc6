"""A model behind an OpenAI-compatible endpoint that is asked many questions: once each, within a budget, with every answer on file."""
