"""The service's settings and its logging set-up. Imports neither `chat_service` nor `workers`."""

from config.load import SettingsError, load_settings
from config.settings import Settings

__all__ = ["Settings", "SettingsError", "load_settings"]
