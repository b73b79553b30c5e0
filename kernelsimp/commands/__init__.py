"""One file a command, with the command's own name: load, scan, plan, apply, hold, fine-tune, measure, report.

A command says in which order the rooms below do their work; what several share stands beside them. Import a
command from its file: a scan does not wait for what training needs.
"""
