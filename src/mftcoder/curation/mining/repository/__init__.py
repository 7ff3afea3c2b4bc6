"""What a whole repository tells: its history, its licences, what its functions call, and what it holds in two languages."""
