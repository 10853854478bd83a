"""A job that learns its rows by heart says so, with the sign and the remedy, in its events."""

import jobs


def test_overfitting_is_told_in_the_events(client):
    training = jobs.upload(client, jobs.jsonl(jobs.rows(12)))
    # The same questions have other answers here: what is learned of the training rows is wrong for these.
    held_out = jobs.upload(client, jobs.jsonl(jobs.rows(12, answer="blue")), "held_out.jsonl")
    job = jobs.create(
        client, training.id, epochs=8, batch=12, options={"learning_rate": 2e-3}, validation_file=held_out.id
    )
    jobs.succeed(client, job.id)
    found = {e.data["finding"]: e for e in jobs.events(client, job.id) if "step" in (e.data or {}) and "finding" in e.data}
    rising = found["validation_loss_rising"]
    assert rising.level == "warn" and rising.data["step"] > 1
    assert "the validation loss rose from" in rising.message and "early_stopping" in rising.message
    assert found["memorising"].level == "warn"
