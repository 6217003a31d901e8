//! Sets in a sorted vector: less code than a hash table, for items that mostly come in order.

/// Adds an item. `false`: it was there before.
pub(crate) fn insert<T: Ord>(sorted: &mut Vec<T>, item: T) -> bool {
    match sorted.binary_search(&item) {
        Ok(_) => false,
        Err(at) => {
            sorted.insert(at, item);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_inserted_once() {
        let mut sorted = Vec::new();
        let added = [7, 1, 7, 9, 1].map(|item| insert(&mut sorted, item));
        assert_eq!((added, sorted), ([true, true, false, true, false], vec![1, 7, 9]));
    }
}
