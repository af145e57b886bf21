"""Package metadata lives in settings.ini; this file only hands it to setuptools."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="])
cfg.read(here/"settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]

extras = [k.removesuffix("_requirements") for k in cfg if k.endswith("_requirements")]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    author=cfg["author"], author_email=cfg["author_email"], license="Apache-2.0",
    keywords=cfg["keywords"].split(), url=cfg["git_url"],
    long_description=(here/"README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    python_requires=f">={cfg['min_python']}", packages=find_packages(include=["meru", "meru.*"], exclude=["meru.benchmarks", "meru.benchmarks.*"]),
    package_data={"meru": ["assets/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require={k: cfg[f"{k}_requirements"].split() for k in extras},
)
