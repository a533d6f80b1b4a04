"""Produces records and says what became of each one of them, and reads a topic as a client that is not Tidemill's.

Run it through `scripts/events history …`, which provides confluent-kafka.

  produce   does what each line of stdin says:
              {"n": 1, "send": [partition, key, value]}   a record; key and value may be null
              {"n": 2, "begin": 1} {"n": 3, "commit": 1} {"n": 4, "abort": 1}   with --transactional-id
            and answers each with a line of its own, in any order:
              {"n": 1, "ok": [partition, offset]} {"n": 2, "ok": []}
              {"n": 1, "fail": why}   it is not in the log, and never will be
              {"n": 1, "info": why}   nobody knows
            After an error that a producer does not outlive, it goes on with another one.
  dump      prints what a consumer of committed records finds, from the lowest offset to the highest:
              {"partition": p, "low": l, "high": h, "records": [[offset, id], …]}
            where id is the field of that name of the value, and null where the value is no JSON; records without a value
            are left out. The last line is {"topic_partitions": count}.
"""

import argparse
import json
import os
import select
import sys
import time

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

CHUNK = 5_000  # records on a line
QUIET = 20.0  # seconds without a record after which a dump gives up
# The broker or the client refused these before they were anywhere.
REFUSED = {
    KafkaError._PURGE_QUEUE,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._QUEUE_FULL,
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_MSG,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
}


def say(answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class Records:
    """A producer that is made anew when it has failed for good."""

    def __init__(self, options):
        self.options = options
        self.producer = None
        self.fatal = None

    def client(self):
        if self.producer is None:
            settings = {
                "bootstrap.servers": self.options.brokers,
                "client.id": "tidemill-history",
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 2,
                "reconnect.backoff.max.ms": 500,
                "message.timeout.ms": int(self.options.timeout * 1000),
                "topic.metadata.refresh.interval.ms": 2_000,
                "error_cb": self.error,
                "log_level": 0,
            }
            if self.options.transactional_id:
                settings["transactional.id"] = self.options.transactional_id
                settings["transaction.timeout.ms"] = int(self.options.timeout * 1000)
            self.fatal = None
            self.producer = Producer(settings)
            if self.options.transactional_id:
                self.producer.init_transactions(self.options.timeout)
        return self.producer

    def error(self, error):
        if error.fatal():
            self.fatal = error.str()

    def poll(self):
        """Has the callbacks of what has ended called."""
        if self.producer is not None:
            try:
                self.producer.poll(0)
            except KafkaException as error:
                self.fatal = self.fatal or str(error)

    def renew(self):
        """What was on its way is unknown; its callbacks say so when the old one is flushed."""
        old, self.producer = self.producer, None
        if old is not None:
            old.purge()
            try:
                old.flush(2)
            except KafkaException:
                pass  # it has failed for good, and says so once more

    def delivered(self, number, error, message):
        if error is None:
            say({"n": number, "ok": [message.partition(), message.offset()]})
        elif error.code() in REFUSED:
            # A record that was purged in flight may be there all the same.
            in_flight = error.code() == KafkaError._PURGE_QUEUE and "flight" in error.str().lower()
            say({"n": number, "info" if in_flight else "fail": error.str()})
        else:
            say({"n": number, "info": error.str()})

    def send(self, number, partition, key, value):
        def done(error, message):
            self.delivered(number, error, message)

        try:
            producer = self.client()
            producer.produce(self.options.topic, value, key, partition=partition, on_delivery=done)
        except (BufferError, KafkaException) as error:
            say({"n": number, "fail": str(error)})
            self.fatal = self.fatal or (str(error) if "fatal" in str(error).lower() else None)

    def transact(self, number, what):
        try:
            producer = self.client()
            if what == "begin":
                producer.begin_transaction()
            elif what == "commit":
                producer.commit_transaction(self.options.timeout)
            else:
                producer.abort_transaction(self.options.timeout)
            say({"n": number, "ok": []})
        except KafkaException as error:
            why = error.args[0]
            # Only a commit leaves a doubt: without one, nobody ever sees the records.
            say({"n": number, "info" if what == "commit" and not why.txn_requires_abort() else "fail": why.str()})
            if what == "commit" and why.txn_requires_abort():
                try:
                    producer.abort_transaction(self.options.timeout)
                    return
                except KafkaException:
                    pass
            self.renew()


def produce(options):
    records = Records(options)
    waiting = b""
    stdin = sys.stdin.fileno()
    while True:
        readable, _, _ = select.select([stdin], [], [], 0.002)
        if readable:
            piece = os.read(stdin, 1 << 16)
            if not piece:
                break
            *lines, waiting = (waiting + piece).split(b"\n")
            for line in lines:
                order = json.loads(line)
                if "send" in order:
                    records.send(order["n"], *order["send"])
                else:
                    what = next(word for word in ("begin", "commit", "abort") if word in order)
                    records.transact(order["n"], what)
        records.poll()
        if records.fatal:
            records.renew()
    if records.producer is not None:
        records.producer.flush(options.timeout)
    return 0


def dump(options):
    consumer = Consumer({
        "bootstrap.servers": options.brokers,
        "group.id": "tidemill-history",
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "log_level": 0,
    })
    topic = consumer.list_topics(options.topic, timeout=options.timeout).topics[options.topic]
    for partition in sorted(topic.partitions):
        low, high = consumer.get_watermark_offsets(TopicPartition(options.topic, partition), timeout=options.timeout)
        consumer.assign([TopicPartition(options.topic, partition, low)])
        records, last = [], time.monotonic()
        while True:
            message = consumer.poll(0.5)
            if message is None:
                if time.monotonic() - last > QUIET:
                    raise SystemExit(f"partition {partition} of {options.topic} gives no record and no end")
                continue
            last = time.monotonic()
            if message.error():
                if message.error().code() == KafkaError._PARTITION_EOF:
                    break
                raise SystemExit(f"partition {partition} of {options.topic}: {message.error()}")
            if message.value() is not None:
                records.append([message.offset(), id_of(message.value())])
            if len(records) >= CHUNK:
                say({"partition": partition, "low": low, "high": high, "records": records})
                records = []
        say({"partition": partition, "low": low, "high": high, "records": records})
    consumer.close()
    say({"topic_partitions": len(topic.partitions)})
    return 0


def id_of(value):
    try:
        return json.loads(value)["id"]
    except (ValueError, KeyError, TypeError):
        return None


def main():
    parser = argparse.ArgumentParser(
        prog="scripts/events history", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["produce", "dump"])
    parser.add_argument("--brokers", required=True, help="bootstrap servers")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--transactional-id", default="", help="write in transactions under this id")
    parser.add_argument("--timeout", type=float, default=20, help="seconds until nobody knows what became of a record")
    options = parser.parse_args()
    return {"produce": produce, "dump": dump}[options.command](options)


if __name__ == "__main__":
    sys.exit(main())
