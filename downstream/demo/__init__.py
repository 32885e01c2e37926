"""What a student, its teacher and trained heads make of one clip, on a web page that never leaves the machine."""
