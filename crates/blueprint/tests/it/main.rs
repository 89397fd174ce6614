//! Tests of reading whole files.

mod corpus;
