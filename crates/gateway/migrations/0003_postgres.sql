-- Each index is written with every request. Holds are few, and gone through when their time is over; charges of a key are found by its account.
DROP INDEX holds_expiry;
DROP INDEX charges_key;
