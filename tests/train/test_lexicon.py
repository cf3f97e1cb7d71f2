"""The words the embedded models are taught."""

from lexiseg.train.lexicon import load_lexicon

NEVER_TRAINED = (
    "facade, automobile, doorway, footpath, roadway, heavens, vegetation, window pane, column, traffic signal board, "
    "fencing, passer-by, cyclist"
)


def test_synonyms_of_the_zero_shot_tests_are_held_out() -> None:
    lexicon = load_lexicon()
    assert set(NEVER_TRAINED.split(", ")) <= set(lexicon.held_out_names())
    assert not set(NEVER_TRAINED.split(", ")) & set(lexicon.training_names())


def test_size_and_held_out_share() -> None:
    lexicon = load_lexicon()
    taught, held_out = len(lexicon.training_names()), len(lexicon.held_out_names())
    assert len(lexicon.concepts) >= 280
    assert 0.15 <= held_out / (taught + held_out) <= 0.25


def test_every_name_has_one_concept() -> None:
    lexicon = load_lexicon()
    for key, concept in lexicon.concepts.items():
        for name in concept.names:
            assert lexicon.concept_of(name) == (name if name in lexicon.concepts else key)


def test_words_mean_what_they_should() -> None:
    lexicon = load_lexicon()
    assert lexicon.concept_of("pavement") == "sidewalk"
    assert lexicon.concept_of("aeroplane") == "airplane"
    assert lexicon.overlap("person", "pedestrian")
    assert lexicon.overlap("pedestrian", "person")
    assert lexicon.overlap("building", "window")
    assert not lexicon.overlap("road", "sidewalk")
