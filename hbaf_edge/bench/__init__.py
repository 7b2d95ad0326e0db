"""`hbaf-edge benchmark`, `compare` and `advise`: what a turn costs on this machine, and how that becomes a report.

turns.py        the turn that is measured, and the runtimes it is measured on
series.py       what a row of measurements says, and how sure it is
scenes.py       what is measured
energy.py       watts, where a machine tells them
document.py     the report as JSON, and what of it is shown
figures.py      its pictures; page.py: its HTML and Markdown
compare.py      two reports beside each other
advise.py       which bundle and settings fit a limit
command.py      the commands
"""
