"""Corpora as dialogues of utterances: one small module each, all yielding the records of `training.corpora.records`.

Data are read where they lie (`$HBAF_DATA`, else `../shared/data` beside the checkout) and never copied into it.
"""
