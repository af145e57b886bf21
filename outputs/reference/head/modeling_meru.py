"What transformers runs with trust_remote_code=True; the package meru must be installed."

from meru import automodel


class MeruConfig(automodel._Config):
    "config.json."


class MeruModel(automodel._Model):
    config_class = MeruConfig


class MeruImageProcessor(automodel._ImageProcessor):
    "preprocessor_config.json."


class MeruTokenizer(automodel._Tokenizer):
    "tokenizer_config.json."
