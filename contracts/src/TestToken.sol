// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// A worthless token for development chains. Anyone mints any amount. Never name it in a deployment that holds value.
contract TestToken is ERC20 {
    /// What a transfer loses on its way, in millionths; 0 but where tests need a token that takes a fee.
    uint256 public immutable feePpm;

    /// @param feePpm_ 0 to 1 000 000
    constructor(uint256 feePpm_) ERC20("Assay test dollars, worth nothing", "TEST") {
        require(feePpm_ <= 1_000_000);
        feePpm = feePpm_;
    }

    /// Six, like USDC.
    function decimals() public pure override returns (uint8) {
        return 6;
    }

    /// Makes `amount` for `to`.
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function _update(address from, address to, uint256 value) internal override {
        uint256 fee = from == address(0) || to == address(0) ? 0 : value * feePpm / 1_000_000;
        if (fee > 0) super._update(from, address(0), fee);
        super._update(from, to, value - fee);
    }
}
