//! Draws the pictures of the guide: `./scripts/pictures`.
//!
//! Each `*.pikchr` of a folder becomes the `*.svg` beside it. The first comment of a source is the picture's title, the
//! next ones describe it to readers who cannot see it. The language is Pikchr: <https://pikchr.org>.
//!
//! Sources name the colours of [`PALETTE`], and use what `common.pikchr` defines. Pikchr draws in the light colours.
//! Each is then given a class, by which a style sheet in the picture has the dark colour take its place.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use pikchr::{Pikchr, PikchrFlags};

/// Names of colours, with the light and the dark one. No two light ones are the same.
const PALETTE: [(&str, u32, u32); 15] = [
    ("paper", 0xffffff, 0x0d1117),
    ("panel", 0xf6f8fa, 0x161b22),
    ("edge", 0xd0d7de, 0x30363d),
    ("faint", 0xafb8c1, 0x59616b),
    ("muted", 0x59636e, 0x9da7b3),
    ("ink", 0x1f2328, 0xe6edf3),
    ("masters", 0xb04700, 0xf0964a),
    ("masters_fill", 0xfff1e0, 0x35200d),
    ("slaves", 0x0958c4, 0x6cb2ff),
    ("slaves_fill", 0xe3f1ff, 0x10263f),
    ("pins", 0x7a43d6, 0xc4a0ff),
    ("pins_fill", 0xf4ecff, 0x281d42),
    ("bads", 0xc01f2a, 0xff7b72),
    ("bads_fill", 0xffebe9, 0x3b171a),
    ("goods", 0x1a7f37, 0x4cc564),
];

/// Pixels for each of Pikchr's units. Its text is 16 units high.
const SCALE: f64 = 0.9;

/// Pixels between the drawing and the picture's edge.
const MARGIN: f64 = 20.0;

const SANS: &str =
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', Arial, sans-serif";
const MONO: &str = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace";

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let (folder, check) = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [folder] => (PathBuf::from(folder), false),
        [folder, "--check"] => (PathBuf::from(folder), true),
        _ => return Err("usage: rocket_replicated_pictures FOLDER [--check]".into()),
    };
    let mut sources = Vec::new();
    for entry in fs::read_dir(&folder)? {
        sources
            .extend(Some(entry?.path()).filter(|path| path.extension().is_some_and(|its| its == "pikchr")));
    }
    sources.sort();
    let mut stale = false;
    for source in &sources {
        let drawn = draw(source).map_err(|error| format!("{}: {error}", source.display()))?;
        let picture = source.with_extension("svg");
        if fs::read_to_string(&picture).is_ok_and(|before| before == drawn) {
            continue;
        }
        if check {
            eprintln!("{} is not what its source gives: run ./scripts/pictures", picture.display());
            stale = true;
        } else {
            fs::write(&picture, drawn)?;
            println!("{}", picture.display());
        }
    }
    Ok(if stale { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn draw(path: &Path) -> Result<String, Box<dyn Error>> {
    let source = fs::read_to_string(path)?;
    let comments = source.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
    let (titles, descriptions): (Vec<_>, Vec<_>) = comments.enumerate().partition(|(line, _)| *line == 0);
    let text = |lines: Vec<(usize, &str)>| {
        lines.into_iter().map(|(_, line)| line).collect::<Vec<_>>().join(" ").trim().to_owned()
    };
    let (title, description) = (text(titles), text(descriptions));
    if title.is_empty() || description.is_empty() {
        return Err("begins with a comment that is the title, and others that describe the picture".into());
    }

    let colours: String = PALETTE.iter().map(|(name, light, _)| format!("{name} = {light:#08x}\n")).collect();
    let source = format!("{colours}{}{source}", include_str!("common.pikchr"));
    let drawn = Pikchr::render(&source, None, PikchrFlags::default())?;
    let (head, body) = drawn.split_once('\n').ok_or("Pikchr draws nothing")?;
    let (width, height) = size(head).ok_or("Pikchr does not tell the size")?;
    let (width, height) = ((width + 2.0 * MARGIN).round(), (height + 2.0 * MARGIN).round());
    let body: String =
        body.trim_end().trim_end_matches("</svg>").lines().map(coloured).collect::<Result<_, _>>()?;

    let (title, description) = (escaped(&title), escaped(&description));
    let (wide, high) = ((width * SCALE).round(), (height * SCALE).round());
    let rule = |(name, _, dark): &(&str, u32, u32)| {
        format!(".fill-{name} {{ fill: {0} }} .stroke-{name} {{ stroke: {0} }}\n", hex(*dark))
    };
    let dark: String = PALETTE.iter().map(rule).collect();
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{wide}\" height=\"{high}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" aria-labelledby=\"title desc\" font-size=\"16\" font-family=\"{SANS}\">\n\
         <title id=\"title\">{title}</title>\n\
         <desc id=\"desc\">{description}</desc>\n\
         <style>\n@media (prefers-color-scheme: dark) {{\n{dark}}}\n</style>\n\
         <rect class=\"fill-paper stroke-edge\" fill=\"{}\" stroke=\"{}\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n\
         <g transform=\"translate({MARGIN} {MARGIN})\">\n{body}</g>\n</svg>\n",
        hex(PALETTE[0].1),
        hex(PALETTE[2].1),
        width - 1.0,
        height - 1.0,
    ))
}

/// The width and the height of a picture, by the first line of Pikchr's output.
fn size(head: &str) -> Option<(f64, f64)> {
    let (_, view_box) = head.split_once("viewBox=\"0 0 ")?;
    let (width, height) = view_box.split_once('"')?.0.split_once(' ')?;
    Some((width.parse().ok()?, height.parse().ok()?))
}

/// An element whose colours are attributes, with a class for each.
fn coloured(element: &str) -> Result<String, Box<dyn Error>> {
    let element = element.replace("font-family=\"monospace\"", &format!("font-family=\"{MONO}\""));
    let mut attributes = String::new();
    let mut classes = Vec::new();
    let mut add = |name: &str, value: &str| -> Result<(), Box<dyn Error>> {
        if let Some(rgb) = value.strip_prefix("rgb(") {
            let rgb: Vec<u32> =
                rgb.trim_end_matches(')').split(',').map(str::parse).collect::<Result<_, _>>()?;
            let rgb = rgb.iter().fold(0, |sum, part| sum << 8 | part);
            let (colour, ..) = PALETTE
                .iter()
                .find(|(_, light, _)| *light == rgb)
                .ok_or_else(|| format!("{} is no colour of the palette", hex(rgb)))?;
            classes.push(format!("{name}-{colour}"));
            attributes.push_str(&format!(" {name}=\"{}\"", hex(rgb)));
        } else {
            attributes.push_str(&format!(" {name}=\"{value}\""));
        }
        Ok(())
    };
    let mut rest = element;
    if let Some((before, after)) = rest.split_once(" style=\"") {
        let (style, after) = after.split_once('"').ok_or("a style without an end")?;
        for declaration in style.split(';').filter(|declaration| !declaration.is_empty()) {
            let (name, value) = declaration.split_once(':').ok_or("a declaration without a value")?;
            add(name.trim(), value.trim())?;
        }
        rest = format!("{}{after}", before.trim_end());
    }
    if rest.starts_with("<text")
        && let Some((before, after)) = rest.split_once(" fill=\"")
    {
        let (fill, after) = after.split_once('"').ok_or("a colour without an end")?;
        add("fill", fill)?;
        rest = format!("{before}{after}");
    }
    if !classes.is_empty() {
        attributes = format!(" class=\"{}\"{attributes}", classes.join(" "));
    }
    let name = rest.find(' ').unwrap_or(rest.len());
    rest.insert_str(name, &attributes);
    Ok(rest + "\n")
}

fn hex(colour: u32) -> String {
    format!("#{colour:06x}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
