"""From a recipe to a curated folder: steps over records, block by block, with every dropped record on file."""
