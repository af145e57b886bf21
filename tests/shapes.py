"""The checker of `--jaxtyping-packages=meru,shapes.check`: types and shapes at run time; an int may be a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
