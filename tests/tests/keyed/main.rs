//! Tables written by key, on both databases: whatever the order in which objects arrive, and how
//! often, the table ends as if each had come once and in time.

mod bench;
mod changes;
mod upsert;

use weirgate_tests::run;

/// Runs a scenario once on each database, as tests of their own.
macro_rules! on_both {
    ($($module:ident: $($name:ident),*;)*) => {
        mod sqlite {
            $(mod $module {
                $(#[test]
                fn $name() -> anyhow::Result<()> {
                    crate::run(crate::$module::$name(crate::bench::sqlite()))
                })*
            })*
        }
        mod postgres {
            $(mod $module {
                $(#[test]
                fn $name() -> anyhow::Result<()> {
                    crate::run(crate::$module::$name(crate::bench::postgres()))
                })*
            })*
        }
    };
}

on_both!(
    upsert: the_newest_object_wins, overwritten_and_written_again, rows_without_a_key_are_bad,
        a_users_own_table, any_order_ends_the_same;
    changes: every_operation, what_is_no_change, any_order_ends_the_same;
);
