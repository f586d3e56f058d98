//! The output flags that every command takes.

/// How data is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables and text for people.
    #[default]
    Table,
    /// One JSON value, or one per line for streams.
    Json,
}

/// `-o table|json` and its short form `--json`; flatten this into the top-level parser.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct OutputArgs {
    /// How data is printed on standard output
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        global = true,
        help_heading = "Global options",
        value_name = "FORMAT"
    )]
    output: Option<Format>,
    /// The same as `-o json`
    #[arg(long, global = true, help_heading = "Global options", conflicts_with = "output")]
    json: bool,
}

impl OutputArgs {
    /// The chosen format.
    pub fn format(self) -> Format {
        match (self.output, self.json) {
            (_, true) => Format::Json,
            (Some(format), false) => format,
            (None, false) => Format::default(),
        }
    }
}
