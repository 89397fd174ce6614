"""Makes the table where there is none; run before each deploy."""

import os

import psycopg

with psycopg.connect(os.environ["DATABASE_URL"], sslmode="require") as db:
    db.execute("create table if not exists entry (id serial primary key, name text not null, at timestamptz not null default now())")
