"""What an index answers about images: who copied whom, with what confidence, and in which direction.

`model` binds an index to the model that describes its images, `describe` turns files into rows, `add`, `query` and
`calibrate` use these rows, and `report` puts the results into words.
"""
