-- What runs the commands of a running box: init, exec, or none with the reason; NULL: nobody has said.

ALTER TABLE boxes ADD COLUMN supervisor TEXT;
