//! Reads values out of a judged object. What is wrong was said already: it is left out here.

use crate::judge::lenient_bool;
use crate::report::Path;
use crate::spec::Text;
use crate::tables::{OBJECTS, Object, Words};
use crate::yaml::{Entry, Node};
use moat_model::{Span, Spanned};

/// A node and the table it was judged by.
#[derive(Clone, Copy)]
pub(super) struct Obj<'n, 't> {
    pub(super) node: &'n Node<'t>,
    pub(super) table: &'static Object,
}

impl<'n, 't> Obj<'n, 't> {
    /// Joins a node and its table; none when the node is no mapping.
    pub(super) fn new(node: &'n Node<'t>, table: &'static Object) -> Option<Self> {
        node.entries().map(|_| Self { node, table })
    }

    /// The entry of a field, when something is written there and the table has the field.
    pub(super) fn entry(&self, name: &str) -> Option<&'n Entry<'t>> {
        debug_assert!(
            self.table.field(name).is_some() || OBJECTS.iter().any(|object| object.field(name).is_some()),
            "no table has `{name}`"
        );
        self.written(name).filter(|_| self.table.field(name).is_some())
    }

    /// The entry of a field by its name or an old one.
    pub(super) fn renamed(&self, name: &str) -> Option<&'n Entry<'t>> {
        self.entry(name).or_else(|| self.table.field(name)?.aliases.iter().find_map(|alias| self.written(alias)))
    }

    fn written(&self, name: &str) -> Option<&'n Entry<'t>> {
        self.node.entry(name).filter(|entry| !entry.value.is_null())
    }

    pub(super) fn get(&self, name: &str) -> Option<&'n Node<'t>> {
        self.entry(name).map(|entry| &entry.value)
    }

    /// A text, as it is written.
    pub(super) fn text(&self, name: &str) -> Option<Text> {
        text(self.get(name)?)
    }

    /// A text that says something.
    pub(super) fn filled(&self, name: &str) -> Option<Text> {
        self.text(name).filter(|text| !text.trim().is_empty())
    }

    /// A word, as the format spells it.
    pub(super) fn word(&self, name: &str, words: &Words) -> Option<Text> {
        let node = self.get(name)?;
        Some(Spanned::new(words.canonical(node.text()?)?, node.span))
    }

    pub(super) fn boolean(&self, name: &str) -> Option<Spanned<bool>> {
        let node = self.get(name)?;
        Some(Spanned::new(lenient_bool(node)?, node.span))
    }

    /// A number inside a range.
    pub(super) fn int(&self, name: &str, low: u32, high: u32) -> Option<Spanned<u32>> {
        let node = self.get(name)?;
        let number: u32 = node.text()?.parse().ok()?;
        (low..=high).contains(&number).then(|| Spanned::new(number, node.span))
    }

    /// The items of a list that are not empty, with their indices.
    pub(super) fn items(&self, name: &str) -> impl Iterator<Item = (usize, &'n Node<'t>)> {
        let items = self.get(name).and_then(Node::items).unwrap_or_default();
        items.iter().enumerate().filter(|(_, item)| !item.is_null())
    }

    /// The texts of a list.
    pub(super) fn texts(&self, name: &str) -> Vec<Text> {
        self.items(name).filter_map(|(_, item)| text(item)).collect()
    }

    /// The object below a field.
    pub(super) fn below(&self, name: &str, table: &'static Object) -> Option<Self> {
        Self::new(self.get(name)?, table)
    }

    /// The objects of a list.
    pub(super) fn list(&self, name: &str, table: &'static Object) -> impl Iterator<Item = (usize, Self)> {
        self.items(name).filter_map(move |(index, item)| Some((index, Self::new(item, table)?)))
    }

    pub(super) fn span(&self) -> Span {
        self.node.span
    }

    /// The place and path of a field's key, for saying something about it.
    pub(super) fn place<'p>(&self, name: &'p str, path: &'p Path<'p>) -> Option<(Span, Path<'p>)>
    where
        'n: 'p,
    {
        let entry = self.renamed(name)?;
        Some((entry.key_span, path.key(&entry.key)))
    }
}

/// A scalar that is not null.
pub(super) fn text(node: &Node<'_>) -> Option<Text> {
    if node.is_null() {
        return None;
    }
    Some(Spanned::new(node.text()?.to_owned(), node.span))
}
