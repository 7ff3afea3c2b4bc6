from mftcoder.data.records.conversation import Message, content_hash, find_problems, make_conversation

QUESTION, ANSWER = Message("user", "Sort a list.", False), Message("assistant", "sorted(x)", True)


def test_the_hash_depends_only_on_roles_and_contents() -> None:
    here = make_conversation([QUESTION, ANSWER], id="1", task="a", origin="x.jsonl:1")
    there = make_conversation(
        [QUESTION, Message("assistant", "sorted(x)", False)], id="2", task="b", origin="y.jsonl:7"
    )
    assert here.content_hash == there.content_hash
    assert here.content_hash != content_hash([QUESTION, Message("assistant", "sorted(y)", True)])
    assert content_hash([Message("user", "ab", False), Message("user", "c", False)]) != content_hash(
        [Message("user", "a", False), Message("user", "bc", False)]
    )


def test_every_problem_of_a_conversation_is_found() -> None:
    broken = [
        Message("user", " ", False),
        Message("system", "Be brief.", False),
        Message("user", "Hm?", True),
        Message("robot", "Beep.", False),  # type: ignore[arg-type]
    ]
    assert list(find_problems(broken)) == [
        "message 1: content is empty",
        "message 2: a system message must be the first message",
        "message 3: only assistant messages can be trained, not one of role 'user'",
        "message 4: role 'robot' is unknown. Known roles: system, human/user, bot/assistant.",
        "it has no assistant message: nothing to train on",
    ]


def test_an_empty_system_message_is_left_out() -> None:
    conversation = make_conversation([Message("system", "", False), QUESTION, ANSWER], id="", task="a", origin="x:1")
    assert conversation.messages == (QUESTION, ANSWER)


def test_training_last_only_trains_the_last_answer() -> None:
    conversation = make_conversation([QUESTION, ANSWER, QUESTION, ANSWER], id="", task="a", origin="x:1")
    assert [message.trained for message in conversation.training_last_only().messages] == [False, False, False, True]
