"""Item and user profiles (eqs. 1, 2): prompts, chat models, and ways that need no model."""
