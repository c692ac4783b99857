"""ShapeStory: a generated corpus of moving coloured shapes, with sound, narration and questions."""
