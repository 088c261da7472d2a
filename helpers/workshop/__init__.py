"""What a workshop needs around the lessons: running them, checking a machine, the invented company, its e-mails."""
