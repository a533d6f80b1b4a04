//! SVG by hand: elements as text, coordinates with one decimal.

use std::fmt::Write;

/// Text as it may stand in HTML and SVG.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// A picture that grows downwards.
#[derive(Default)]
pub struct Picture {
    /// What lies below everything else.
    ground: String,
    out: String,
}

impl Picture {
    pub fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64), title: &str) {
        let style = class.strip_prefix('#').map(|color| format!("fill=\"#{color}\""));
        let style = style.unwrap_or_else(|| format!("class=\"{class}\""));
        let shape = format!(
            "<rect {style} x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" rx=\"2\"",
            width.max(0.8)
        );
        _ = match title.is_empty() {
            true => writeln!(self.out, "{shape}/>"),
            false => writeln!(self.out, "{shape}><title>{}</title></rect>", escape(title)),
        };
    }

    pub fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: &str, text: &str) {
        let text = escape(text);
        _ = writeln!(
            self.out,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    /// A rectangle below everything else.
    pub fn band(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        _ = writeln!(
            self.ground,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        );
    }

    /// A line below everything else.
    pub fn grid(&mut self, from: (f64, f64), to: (f64, f64)) {
        let (x1, y1, x2, y2) = (from.0, from.1, to.0, to.1);
        _ = writeln!(
            self.ground,
            "<line class=\"grid\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    }

    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        _ = writeln!(
            self.out,
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    /// A triangle that points down to `(x, y)`.
    pub fn pointer(&mut self, class: &str, (x, y): (f64, f64), title: &str) {
        let (left, right, top) = (x - 5.0, x + 5.0, y - 9.0);
        _ = writeln!(
            self.out,
            "<polygon class=\"{class}\" points=\"{left:.1},{top:.1} {right:.1},{top:.1} {x:.1},{y:.1}\"><title>{}</title></polygon>",
            escape(title)
        );
    }

    /// A curve and the area under it down to `ground`; where there is no value it is interrupted.
    pub fn curve(&mut self, color: &str, points: &[Option<(f64, f64)>], ground: f64) {
        for piece in points.split(Option::is_none).filter(|piece| !piece.is_empty()) {
            let piece: Vec<(f64, f64)> = piece.iter().flatten().copied().collect();
            let path: Vec<String> = piece.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let path = path.join(" ");
            let (first, last) = (piece[0].0, piece[piece.len() - 1].0);
            _ = writeln!(
                self.out,
                "<polygon class=\"area\" style=\"fill:var(--{color})\" points=\"{first:.1},{ground:.1} {path} {last:.1},{ground:.1}\"/>\n\
                 <polyline class=\"line\" style=\"stroke:var(--{color})\" points=\"{path}\"/>"
            );
        }
    }

    /// The whole of it.
    pub fn finish(self, width: f64, height: f64, label: &str) -> String {
        format!(
            "<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">\n{}{}</svg>\n",
            escape(label),
            self.ground,
            self.out
        )
    }
}
