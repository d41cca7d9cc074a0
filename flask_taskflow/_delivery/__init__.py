"""What follows a step: codes go out, callbacks run, processes hear of it."""
