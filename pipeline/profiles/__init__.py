"""Item and user profiles (eqs. 1, 2): prompts, chat models, and ways that need no model."""

from pipeline.profiles.chat import ChatModelError
from pipeline.profiles.prompts import TemplateError, load_template
from pipeline.profiles.write import ProfileResult, write_item_profiles, write_user_profiles

__all__ = [
    "ChatModelError",
    "ProfileResult",
    "TemplateError",
    "load_template",
    "write_item_profiles",
    "write_user_profiles",
]
